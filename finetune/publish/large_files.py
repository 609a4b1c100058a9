"""Large files on their way into the Hub's store, in parts, several at a time; nothing of it is seen in a repository."""

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from huggingface_hub import CommitOperationAdd
from huggingface_hub.utils._runtime import is_xet_available
from huggingface_hub.utils._xet import abort_xet_session

from .hub_errors import Target
from .lfs_parts import send_lfs
from .local_files import LocalFile, read_parts
from .transfer_progress import Transfer
from .xet_parts import open_xet

# What one object of the chunk store holds. Four at a time fill a line of a few GB/s, and 256 MiB of memory.
PART_BYTES = 64 << 20
NUM_THREADS = 4
# The Hub takes files up to this size as plain ones, within the commit.
PLAIN_BYTES = 10_000_000


def store_file(
    target: Target,
    file: LocalFile,
    operation: CommitOperationAdd,
    transfer: Transfer,
    *,
    revision: str,
    create_pr: bool,
    part_bytes: int,
) -> None:
    """Store the content of `file`, so that `operation` only has to name it; its sha256 is known then.

    A call after one that was killed sends what is missing.

    Raises:
        OSError, RuntimeError: what huggingface_hub and hf_xet raise.
    """
    transfer.name(file.name)
    is_large = file.size > PLAIN_BYTES
    if not is_xet_available():
        if is_large:
            send_lfs(
                target,
                revision,
                file,
                lambda size, is_sent: transfer.add(size, is_sent=is_sent),
                num_threads=NUM_THREADS,
            )
    elif file.size > part_bytes and is_large:
        _send_xet(target, file, transfer, revision, create_pr, part_bytes)
    if file.sha256:
        operation.upload_info.sha256 = bytes.fromhex(file.sha256)
    target.api.preupload_lfs_files(
        target.repo_id,
        [operation],
        repo_type=target.repo_type,
        revision=revision,
        create_pr=create_pr,
        free_memory=False,
    )
    if not is_large or (is_xet_available() and file.size <= part_bytes):
        transfer.add(file.size)


def _send_xet(
    target: Target, file: LocalFile, transfer: Transfer, revision: str, create_pr: bool, part_bytes: int
) -> None:
    send = open_xet(target, revision, create_pr=create_pr)

    def send_part(part: bytes) -> None:
        num_sent = min(send(part), len(part))
        transfer.add(num_sent)
        transfer.add(len(part) - num_sent, is_sent=False)

    pool = ThreadPoolExecutor(NUM_THREADS)
    running: set[Future[None]] = set()
    try:
        for part in read_parts(file, part_bytes):
            running.add(pool.submit(send_part, part))
            if len(running) >= NUM_THREADS:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
        for future in running:
            future.result()
    except BaseException:
        abort_xet_session()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()

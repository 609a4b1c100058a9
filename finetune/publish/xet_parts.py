"""Parts of large files in the Hub's chunk store (Xet), so that an upload that was killed goes on where it was.

hf_xet makes what it sent known when the files of a session are complete, and what it sent before is lost to it: an
upload that was killed begins again. A part sent as a session of its own is known at once. The whole file is then sent
as usual, and finds all of its chunks there but the one or two at each seam.
"""

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from hf_xet import SKIP_SHA256  # pyright: ignore[reportAttributeAccessIssue]
from huggingface_hub.utils import build_hf_headers
from huggingface_hub.utils._xet import (
    XetFileData,
    XetTokenType,
    get_xet_session,
    refresh_xet_connection_info,
    xet_connection_info_refresh_url,
    xet_headers_without_auth,
)

from .hub_errors import Target

SendPart = Callable[[bytes], int]


def open_xet(target: Target, revision: str, *, create_pr: bool) -> SendPart:
    """Return what sends a part, waits until it is stored, and returns how many bytes had to travel.

    It may be called from several threads.
    """
    headers = build_hf_headers(token=target.api.token, library_name="seeklet")
    address = xet_connection_info_refresh_url(
        token_type=XetTokenType.WRITE,
        repo_id=target.repo_id,
        repo_type=target.repo_type,
        revision=quote(revision, safe=""),
        endpoint=target.api.endpoint,
    )
    address += "?create_pr=1" if create_pr else ""

    def send(part: bytes) -> int:
        # Asked for anew only when it runs out: the Hub limits how often it is asked.
        connection = refresh_xet_connection_info(file_data=XetFileData("", address), headers=headers)
        sent = [0]

        def count(group: Any, _items: Any) -> None:
            sent[0] = group.total_transfer_bytes_completed

        with get_xet_session().new_upload_commit(
            endpoint=connection.endpoint,
            token=connection.access_token,
            token_expiry_unix_secs=connection.expiration_unix_epoch,
            token_refresh_url=address,
            token_refresh_headers=headers,
            custom_headers=xet_headers_without_auth(headers),
            progress_callback=count,
        ) as session:
            session.start_upload_bytes(part, sha256=SKIP_SHA256)
        return sent[0]

    return send

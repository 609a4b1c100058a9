"""`python -m seeklet.finetune.pipeline.worker`: `python -m seeklet.finetune`, ended with the launcher that started it.

A launcher that is killed leaves its workers behind, which would train on, and hold the folder's lock.
"""

from ..cli import main
from .launch import end_with_parent

if __name__ == "__main__":
    end_with_parent()
    main()

"""A company example: a small open model learns to answer the questions a company is asked, on this machine's CPU."""

from ..cli.quiet_bitsandbytes import keep_bitsandbytes_quiet

# Before anything here imports PEFT.
keep_bitsandbytes_quiet()

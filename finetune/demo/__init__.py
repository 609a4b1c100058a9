"""`make demo`: DeepSeek-R1's whole recipe on a nano model, on CPU, in minutes."""

from ..cli.quiet_bitsandbytes import keep_bitsandbytes_quiet

# Before anything here imports PEFT.
keep_bitsandbytes_quiet()

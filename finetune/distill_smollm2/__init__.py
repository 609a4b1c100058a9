"""`make distill-smollm2`: what the demo's nano teacher wrote, as text, teaches a real small model."""

from ..cli.quiet_bitsandbytes import keep_bitsandbytes_quiet

# Before anything here imports PEFT.
keep_bitsandbytes_quiet()

"""`make distill-smollm2`: what the demo's nano teacher wrote, as text, teaches a real small model."""

"""A company's own data: read, checked with line numbers, scanned, split, tokenised and packed."""

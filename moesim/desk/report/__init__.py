"""The report: one self-contained page that works offline, on a phone, on paper and without colour vision."""

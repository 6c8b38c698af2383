"""Many runs: comparing, sweeping, planning, calibrating and validating. No clock, no files."""

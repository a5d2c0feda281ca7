"""What ``verify`` measures of a sample, one module per check. Each writes its scores beside its records."""

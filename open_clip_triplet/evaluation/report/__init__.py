"""Results as tables, plots and pages, beside the paper's."""

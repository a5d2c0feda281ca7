"""How stages run: inputs, tasks, engines, records, progress, the data card."""

"""What a stage asks: language models, text-to-image pipelines, encoders, rules."""

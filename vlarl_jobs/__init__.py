"""What a person runs to its end: fine-tuning, evaluations, reports."""

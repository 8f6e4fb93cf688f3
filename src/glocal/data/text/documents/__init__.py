"""Documents to be pre-trained on, for BERT and GPT."""

"""Records of files in and out: JSONL, CSV, Parquet, saved Hugging Face data sets."""

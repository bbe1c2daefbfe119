"""Sources of audio: local folders, rows of Parquet files or Hub data sets, and synthetic speech."""

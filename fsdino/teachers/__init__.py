"""What is distilled and never shipped inside a student: SAM-format teachers and the cache of their embeddings."""

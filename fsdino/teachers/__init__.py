"""SAM-format teachers: what is distilled and never shipped inside a student."""

"""How well methods segment: few-shot mIoU, ablations, prompts, presence, runtimes."""

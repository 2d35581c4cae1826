"""Plugin for VLMEvalKit: a Qwen-VL adapter for any device, and a runner that batches, resumes and compares."""

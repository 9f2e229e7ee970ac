"""A checkpoint behind OpenAI's protocol of chat completions: requests read, queued, answered in batches, streamed."""

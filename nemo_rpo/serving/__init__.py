"""OpenAI-compatible servers: where they are, how they are started, asked, and given up on."""

"""The HTTP processes: text in, text out. Tokenizes, submits to the engine over ipc, detokenizes and streams."""

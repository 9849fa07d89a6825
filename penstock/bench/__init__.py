"""`penstock bench`: a load generator for any server that speaks OpenAI's API.

The parent process (`run`, `runner`) starts client processes (`worker`) that take requests from one list (`work_list`), and
makes a report of what they measured (`report`, `plot`). A client process imports nothing heavy, and
does little per received chunk.
"""

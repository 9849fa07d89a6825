"""What stops an engine from starting."""


class EngineStartError(Exception):
    """The engine cannot start; the message is one clear line for a person: what is wrong and what to change."""

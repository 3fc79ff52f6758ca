"""Label Studio: a server that it asks for masks (`backend`), and whole projects before anybody opens them."""

# Before the files of this folder, which import them as they need them.
try:
    import fastapi  # noqa: F401
    import httpx  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError as error:
    raise ImportError(f"Label Studio needs {error.name}; install it with `pip install fsdino[annotate]`.") from error

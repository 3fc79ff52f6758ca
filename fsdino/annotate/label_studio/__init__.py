"""Label Studio: a server that it asks for masks (`backend`), and whole projects before anybody opens them."""

"""Label Studio: a server that it asks for masks (`backend`), and a whole project before anybody opens it (`project`)."""

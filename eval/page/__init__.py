"""The web page of `sottovoce serve`: its files, the packages it runs on, and the server that delivers it."""

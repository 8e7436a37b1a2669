"""The Task API, versions 2 and 3: the only room that speaks both the wire's messages and the domain's values."""

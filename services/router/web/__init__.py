"""The operators' page: the control API in a browser."""

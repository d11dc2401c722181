"""HTTP routes, one small file per noun."""

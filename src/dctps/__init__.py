"""Networks whose layers are `W = alpha * D + S`: a fast dense offset plus a sparse trained matrix."""

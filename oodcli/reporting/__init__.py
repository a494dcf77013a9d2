"""Results: metrics of scores, their statistics, published values, and pictures of them."""

"""Interactive exploration."""

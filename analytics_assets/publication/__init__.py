"""What leaves the analytics database as numbers for people: published totals in fives, friction, pages."""

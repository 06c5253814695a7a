//! Between wire formats and the neutral model, with a report of every loss.

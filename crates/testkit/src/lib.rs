//! Fixtures, golden compare and stream builders for tests.

use std::fmt;

/// Where in nested formats a byte stands, outermost first: `libxl[1] LIBXC_CONTEXT > libxc[17] PAGE_DATA`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamPath(Vec<String>);

impl StreamPath {
    /// The path of the whole stream: empty.
    pub fn root() -> Self {
        Self::default()
    }

    /// This path, one level deeper.
    #[must_use]
    pub fn child(&self, segment: impl fmt::Display) -> Self {
        let mut segments = self.0.clone();
        segments.push(segment.to_string());
        Self(segments)
    }

    /// Whether this is the whole stream.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for StreamPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("stream");
        }
        f.write_str(&self.0.join(" > "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_outermost_first() {
        let path = StreamPath::root().child("libxl[1] LIBXC_CONTEXT").child("libxc[17] PAGE_DATA");
        assert_eq!(path.to_string(), "libxl[1] LIBXC_CONTEXT > libxc[17] PAGE_DATA");
        assert_eq!(StreamPath::root().to_string(), "stream");
    }
}

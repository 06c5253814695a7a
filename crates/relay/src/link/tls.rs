//! TLS 1.3 between two hosts that both show a certificate of one authority, and trust no other.
//!
//! Source: RFC 8446; rustls 0.23. Older versions of TLS, tickets and early data are off: each move authenticates anew.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
    version::TLS13,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::{Error, Result};

/// Where a host's certificate, its key, and the authority's certificate are, in PEM.
#[derive(Clone, Debug)]
pub struct Files {
    /// The host's certificate, and those between it and the authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Certificates of the authority.
    pub authority: PathBuf,
}

/// Who we are, and whom we trust.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("chain", &self.chain.len()).finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads the files.
    pub fn read(files: &Files) -> Result<Self> {
        let chain = certificates(&files.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&files.key)
            .map_err(|error| file_error(&files.key, "reading the key", error))?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&files.authority)? {
            roots.add(certificate).map_err(|error| file_error(&files.authority, "trusting it", error))?;
        }
        Ok(Self { chain, key, roots: Arc::new(roots) })
    }

    /// The side that connects.
    pub(super) fn connector(&self) -> Result<TlsConnector> {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .with_root_certificates(Arc::clone(&self.roots))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key());
        let mut config = config.map_err(unusable)?;
        config.resumption = Resumption::disabled();
        Ok(TlsConnector::from(Arc::new(config)))
    }

    /// The side that listens.
    pub(super) fn acceptor(&self) -> Result<TlsAcceptor> {
        let provider = Arc::new(ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), Arc::clone(&provider))
                .build()
                .map_err(unusable)?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key());
        let mut config = config.map_err(unusable)?;
        config.send_tls13_tickets = 0;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    const DOING: &str = "reading certificates";
    let read = CertificateDer::pem_file_iter(path).map_err(|error| file_error(path, DOING, error))?;
    let found: std::result::Result<Vec<_>, _> = read.collect();
    match found {
        Ok(found) if found.is_empty() => Err(file_error(path, DOING, "there is none in it; wanted PEM")),
        found => found.map_err(|error| file_error(path, DOING, error)),
    }
}

/// An error of a handshake, with what to do about it.
pub(super) fn explain(error: &io::Error) -> String {
    use rustls::{AlertDescription as Alert, CertificateError as Fault, Error as Tls};
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>());
    let remedy = match inner {
        Some(Tls::InvalidCertificate(fault)) => match fault {
            Fault::Expired | Fault::ExpiredContext { .. } => {
                "theirs has run out: issue a new one, or set the clocks"
            }
            Fault::NotValidYet | Fault::NotValidYetContext { .. } => {
                "theirs is of the future: set the clocks"
            }
            Fault::UnknownIssuer => "theirs is of another authority than the one in --tls-ca",
            Fault::NotValidForName | Fault::NotValidForNameContext { .. } => {
                "theirs lacks the name that we connected to: issue it with that subjectAltName"
            }
            _ => "theirs does not do",
        },
        Some(Tls::NoCertificatesPresented) => "they have shown no certificate",
        Some(Tls::AlertReceived(alert)) => match *alert {
            Alert::CertificateExpired => "they say that ours has run out: issue a new one, or set the clocks",
            Alert::UnknownCA => "they say that ours is of another authority than theirs",
            Alert::CertificateRequired => "they want a certificate of us: name it with --tls-cert",
            Alert::ProtocolVersion => "they do not speak TLS 1.3",
            _ => "they say no",
        },
        Some(Tls::InvalidMessage(_)) => "they do not speak TLS",
        _ if matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        ) =>
        {
            "they closed the connection in the middle"
        }
        _ => return error.to_string(),
    };
    format!("{remedy} ({error})")
}

fn unusable(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::System { doing: "preparing TLS", source: io::Error::other(error) }
}

fn file_error(
    path: &Path,
    doing: &'static str,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Error {
    Error::File { path: path.to_owned(), doing, source: io::Error::other(error) }
}

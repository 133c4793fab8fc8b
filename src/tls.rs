//! Selects the cryptography provider for all TLS.

/// Installs ring as the process's provider; calls after the first do nothing.
pub fn install_provider() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

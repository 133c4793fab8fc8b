//! One choice of cryptography for everything that speaks TLS.

/// Makes ring the process's provider; calls after the first do nothing.
pub fn install_provider() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

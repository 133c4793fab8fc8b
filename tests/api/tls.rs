//! HTTPS with a certificate from the config.

use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::common::{Need, Server, eventually, password, run};

fn certificate(folder: &Path) -> (PathBuf, PathBuf) {
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    let files = ["-keyout", key.to_str().unwrap(), "-out", cert.to_str().unwrap()];
    let names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"];
    // Self-signed, and not a CA.
    let kind = ["-addext", "basicConstraints=critical,CA:FALSE"];
    let new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
    run("openssl", &[&new[..], &names, &kind, &files].concat());
    (cert, key)
}

#[test]
fn https_is_served_and_http_is_not() {
    if !Need::OpenSsl.is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = certificate(folder.path());
    let mut server = Server::builder().without_docker().start().unwrap();
    server.reconfigure(&format!("tls_cert = \"{}\"\ntls_key = \"{}\"", cert.display(), key.display()));
    // TLS is enabled at the next start.
    server.anon().get("/version").ok();
    server.terminate();
    server.start_unready();
    let announced = format!("serving https://127.0.0.1:{}", server.port);
    eventually(Duration::from_secs(2), "it is announced", || server.log().contains(&announced));
    let plain = server.anon().try_send("GET", "/version", &[], b"");
    assert!(plain.is_err() || plain.is_ok_and(|answer| answer.status == 400));

    pody::tls::install_provider();
    let authority = reqwest::Certificate::from_pem(&fs::read(&cert).unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let base = format!("https://127.0.0.1:{}", server.port);
    runtime.block_on(async {
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([authority]).build().unwrap();
        // A silent connection does not delay others.
        let _silent: Vec<TcpStream> =
            (0..20).map(|_| TcpStream::connect(("127.0.0.1", server.port)).unwrap()).collect();
        let answer = client.get(format!("{base}/user/info")).basic_auth("alice", Some(password("alice"))).send();
        let answer = tokio::time::timeout(Duration::from_secs(5), answer).await.unwrap().unwrap();
        assert_eq!(answer.status(), 200);
    });
}

#[test]
fn a_bad_certificate_prevents_the_start() {
    if !Need::OpenSsl.is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = certificate(folder.path());
    let other = tempfile::tempdir().unwrap();
    let (_, foreign) = certificate(other.path());
    let mut server = Server::builder().without_docker().start().unwrap();
    server.terminate();
    fs::write(folder.path().join("empty.pem"), "").unwrap();
    let empty = folder.path().join("empty.pem");
    for (cert, key) in [(&cert, &empty), (&empty, &key), (&cert, &foreign), (&folder.path().join("none"), &key)] {
        let error = server.fails_to_start(&format!("tls_cert = {cert:?}\ntls_key = {key:?}"));
        assert!(error.contains(".pem") || error.contains("none"), "{error}");
    }
}

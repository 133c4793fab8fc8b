//! Opens the store of `[checkpoint.remote]`. Options have the names that the `object_store` crate uses, such as
//! `aws_access_key_id`; environment variables of the same names apply where the config sets none.

use std::{fs, os::unix::fs::DirBuilderExt, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use object_store::{
    BackoffConfig, ClientOptions, ObjectStoreScheme, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    azure::{AzureConfigKey, MicrosoftAzureBuilder},
    gcp::{GoogleCloudStorageBuilder, GoogleConfigKey},
    local::LocalFileSystem,
};

use super::{Key, ObjectError, Storage, words};
use crate::config::RemoteConfig;

/// Timeout of one request, which carries at most one part of a large file.
const REQUEST: Duration = Duration::from_secs(120);
const CONNECT: Duration = Duration::from_secs(10);
/// Immediate retries; further ones are left to the caller, at a later time.
const RETRIES: usize = 3;
const RETRY: Duration = Duration::from_secs(60);
/// Prefix of all our objects in the store.
const OURS: &str = "pody";

/// The kind of store.
enum Kind {
    Directory(PathBuf),
    S3,
    Google,
    Azure,
}

/// Checks a config as far as possible without contacting the store.
pub fn check(config: &RemoteConfig) -> Result<(), String> {
    if config.url.is_empty() {
        return match config.options.0.is_empty() {
            true => Ok(()),
            false => Err("[checkpoint.remote] has options but no url".to_owned()),
        };
    }
    let (kind, _) = parse(config)?;
    let unknown = |key: &&String| match kind {
        Kind::Directory(_) => true,
        Kind::S3 => AmazonS3ConfigKey::from_str(&key.to_ascii_lowercase()).is_err(),
        Kind::Google => GoogleConfigKey::from_str(&key.to_ascii_lowercase()).is_err(),
        Kind::Azure => AzureConfigKey::from_str(&key.to_ascii_lowercase()).is_err(),
    };
    match config.options.0.keys().find(unknown) {
        Some(key) => Err(format!("[checkpoint.remote.options] {key} is not an option of this kind of store")),
        None => Ok(()),
    }
}

fn parse(config: &RemoteConfig) -> Result<(Kind, Key), String> {
    let bad = |why: &str| format!("[checkpoint.remote] url {why}");
    let url: reqwest::Url = config.url.parse().map_err(|error| bad(&format!("is not a URL: {error}")))?;
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        return Err(bad("must not contain keys: put them into [checkpoint.remote.options] or the environment"));
    }
    let known = "must be file:///directory, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix";
    let (scheme, path) = ObjectStoreScheme::parse(&url).map_err(|_| bad(known))?;
    match scheme {
        ObjectStoreScheme::Local => {
            let path = url.to_file_path().map_err(|()| bad("names no directory"))?;
            Ok((Kind::Directory(path), Key::default()))
        }
        ObjectStoreScheme::AmazonS3 => Ok((Kind::S3, path)),
        ObjectStoreScheme::GoogleCloudStorage => Ok((Kind::Google, path)),
        ObjectStoreScheme::MicrosoftAzure => Ok((Kind::Azure, path)),
        _ => Err(bad(known)),
    }
}

impl Storage {
    pub fn open(config: &RemoteConfig) -> Result<Self, ObjectError> {
        check(config)
            .and_then(|()| parse(config))
            .map_err(|error| ObjectError::Config(error.trim_start_matches("[checkpoint.remote] ").to_owned()))?;
        let (kind, prefix) = parse(config).map_err(ObjectError::Config)?;
        crate::tls::install_provider();
        let secrets: Arc<[String]> = config.options.secrets().map(str::to_owned).collect();
        let failed = |error: object_store::Error| ObjectError::Config(words(&error.to_string(), &secrets));
        let prefix = Key::from_iter(prefix.parts().map(|part| part.as_ref().to_owned()).chain([OURS.to_owned()]));
        let url = config.url.clone();
        let client = ClientOptions::new().with_timeout(REQUEST).with_connect_timeout(CONNECT);
        let retry = RetryConfig { backoff: BackoffConfig::default(), max_retries: RETRIES, retry_timeout: RETRY };
        macro_rules! cloud {
            ($builder:expr, $key:ty) => {{
                let mut builder =
                    $builder.with_client_options(client).with_retry(retry).with_url(url.trim_end_matches('/'));
                for (key, value) in &config.options.0 {
                    let key: $key = key.to_ascii_lowercase().parse().map_err(failed)?;
                    builder = builder.with_config(key, value);
                }
                let store = Arc::new(builder.build().map_err(failed)?);
                Ok(Self {
                    store: store.clone(),
                    signer: Some(store),
                    root: prefix,
                    directory: None,
                    url: url.clone(),
                    secrets: secrets.clone(),
                })
            }};
        }
        match kind {
            Kind::Directory(directory) => {
                // It contains the memory of programs. The directories above are the admin's.
                let ours = directory.join(OURS);
                let made = fs::create_dir_all(&directory)
                    .and_then(|()| match fs::DirBuilder::new().mode(0o700).create(&ours) {
                        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
                        made => made,
                    })
                    .and_then(|()| fs::canonicalize(&directory));
                let directory = made.map_err(ObjectError::io(&ours))?;
                let store = LocalFileSystem::new_with_prefix(&directory).map_err(failed)?;
                Ok(Self {
                    store: Arc::new(store.with_fsync(true)),
                    signer: None,
                    root: prefix,
                    directory: Some(directory),
                    url,
                    secrets,
                })
            }
            Kind::S3 => cloud!(AmazonS3Builder::from_env(), AmazonS3ConfigKey),
            Kind::Google => cloud!(GoogleCloudStorageBuilder::from_env(), GoogleConfigKey),
            Kind::Azure => cloud!(MicrosoftAzureBuilder::from_env(), AzureConfigKey),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RemoteOptions;

    fn config(url: &str, options: &[(&str, &str)]) -> RemoteConfig {
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        RemoteConfig { url: url.to_owned(), options: RemoteOptions(options), ..RemoteConfig::default() }
    }

    #[test]
    fn the_url_selects_the_kind_of_store() {
        for good in ["", "file:///srv/x", "s3://bucket/some/prefix", "gs://bucket", "az://container/prefix"] {
            assert_eq!(check(&config(good, &[])), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("/srv/x", "is not a URL"),
            ("ftp://x/y", "s3://bucket/prefix"),
            ("memory:///", "s3://bucket/prefix"),
            ("http://box/x", "s3://bucket/prefix"),
            ("s3://key:secret@bucket", "must not contain keys"),
            ("az://c/x?sig=abc", "must not contain keys"),
        ] {
            let error = check(&config(bad, &[])).unwrap_err();
            assert!(error.contains(why) && !error.contains("secret"), "{bad}: {error}");
        }
        assert_eq!(check(&config("s3://b", &[("AWS_Region", "x"), ("endpoint", "y")])), Ok(()));
        let error = check(&config("s3://b", &[("aws_acess_key_id", "hidden")])).unwrap_err();
        assert_eq!(error, "[checkpoint.remote.options] aws_acess_key_id is not an option of this kind of store");
        assert!(check(&config("file:///srv", &[("endpoint", "y")])).is_err());
    }
}

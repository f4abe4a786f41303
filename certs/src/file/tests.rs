use std::os::unix::fs::symlink;
use std::time::Duration;

use super::*;
use crate::ca::CertificateAuthority;
use crate::csr::certificate_request;
use crate::key::{KeyAlgorithm, PrivateKey};
use crate::spiffe::SpiffeId;

/// Writes a chain and its key into `dir`, as kubelet lays out a secret.
fn write_certificate(authority: &CertificateAuthority, dir: &Path) {
    let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
    let id = SpiffeId::workload("td", "ns", "sa");
    let csr = certificate_request(&key, &id).unwrap();
    let pem = authority.sign(&csr, &id, std::time::SystemTime::now(), Duration::from_secs(3600)).unwrap();
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("cert.pem"), pem.concat()).unwrap();
    fs::write(dir.join("key.pem"), key.to_pem()).unwrap();
}

fn pair(dir: &Path) -> FileSecret {
    FileSecret::Certificate { chain: dir.join("cert.pem"), key: dir.join("key.pem") }
}

#[test]
fn names_of_istio_are_read() {
    assert_eq!(
        FileSecret::from_name("file-cert:/a/cert.pem~/a/key.pem"),
        Some(FileSecret::Certificate { chain: "/a/cert.pem".into(), key: "/a/key.pem".into() })
    );
    assert_eq!(
        FileSecret::from_name("file-root:/a/root.pem"),
        Some(FileSecret::Roots { path: "/a/root.pem".into(), crl: None })
    );
    for other in ["default", "ROOTCA", "file-cert:/a", "file-root:", "file-cert:~"] {
        assert_eq!(FileSecret::from_name(other), None, "{other}");
    }
}

#[test]
fn unreadable_and_broken_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = pair(dir.path()).load().unwrap_err().to_string();
    assert!(error.contains("cert.pem: No such file"), "{error}");
    let root = dir.path().join("root.pem");
    fs::write(&root, "nothing").unwrap();
    let error = FileSecret::Roots { path: root, crl: None }.load().unwrap_err().to_string();
    assert!(error.ends_with("root.pem: no certificate"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn symlink_swap_replaces_the_secret_and_a_broken_file_keeps_it() {
    let authority = CertificateAuthority::generate("test").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (one, two, data) = (dir.path().join("..1"), dir.path().join("..2"), dir.path().join("..data"));
    write_certificate(&authority, &one);
    write_certificate(&authority, &two);
    symlink("..1", &data).unwrap();

    let store = SecretStore::new();
    let watcher = FileWatcher::spawn(store.clone(), Duration::from_secs(5));
    watcher.watch("files", pair(&data)).unwrap();
    let first = store.certificate("files").unwrap();

    let swap = dir.path().join("..tmp");
    symlink("..2", &swap).unwrap();
    fs::rename(&swap, &data).unwrap();
    let mut changes = store.subscribe();
    changes.changed().await.unwrap();
    let second = store.certificate("files").unwrap();
    assert_ne!(first.serial, second.serial);

    fs::write(two.join("key.pem"), "broken").unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(store.certificate("files").unwrap().serial, second.serial);
    let errors = watcher.errors();
    assert!(errors[0].0 == "files" && errors[0].1.contains("private key"), "{errors:?}");

    write_certificate(&authority, &two);
    changes.changed().await.unwrap();
    assert!(watcher.errors().is_empty());
    watcher.unwatch("files");
    assert!(store.secret("files").is_none());
}

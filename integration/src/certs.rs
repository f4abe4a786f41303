//! The certificates of a run, made once into a directory: `{{certs}}/NAME.pem` and `NAME.key`.
//! `ca` signs `server`, `other` (another name), `client` and `stranger` (another identity); `rogue-ca` signs `rogue`.

use std::io;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Leaf name, issuer, DNS names, SPIFFE ID.
const LEAVES: &[(&str, &str, &[&str], &str)] = &[
    (
        "server",
        "ca",
        &["server.example.com", "*.wild.example.com"],
        "spiffe://cluster.local/ns/default/sa/server",
    ),
    ("other", "ca", &["other.example.com"], "spiffe://cluster.local/ns/default/sa/other"),
    ("client", "ca", &["client.example.com"], "spiffe://cluster.local/ns/default/sa/client"),
    ("stranger", "ca", &["stranger.example.com"], "spiffe://cluster.local/ns/default/sa/stranger"),
    ("rogue", "rogue-ca", &["server.example.com"], "spiffe://cluster.local/ns/default/sa/server"),
];

#[derive(Debug)]
pub struct Certs {
    dir: PathBuf,
    /// DER of each leaf, to name what a peer presented.
    known: Vec<(String, Vec<u8>)>,
}

impl Certs {
    /// Makes all certificates in `dir`.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn create(dir: &Path) -> io::Result<Self> {
        let mut known = Vec::new();
        for ca in ["ca", "rogue-ca"] {
            let key = KeyPair::generate().map_err(io::Error::other)?;
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params.distinguished_name.push(DnType::CommonName, ca);
            let cert = params.self_signed(&key).map_err(io::Error::other)?;
            std::fs::write(dir.join(format!("{ca}.pem")), cert.pem())?;
            let issuer = Issuer::new(params, key);
            for (name, signer, dns, spiffe) in LEAVES.iter().filter(|l| l.1 == ca) {
                debug_assert_eq!(*signer, ca);
                let key = KeyPair::generate().map_err(io::Error::other)?;
                let mut params =
                    CertificateParams::new(dns.iter().map(|d| (*d).to_owned()).collect::<Vec<_>>())
                        .map_err(io::Error::other)?;
                params.subject_alt_names.push(SanType::URI((*spiffe).try_into().map_err(io::Error::other)?));
                params.distinguished_name.push(DnType::CommonName, *name);
                let leaf = params.signed_by(&key, &issuer).map_err(io::Error::other)?;
                std::fs::write(dir.join(format!("{name}.pem")), leaf.pem())?;
                std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem())?;
                known.push(((*name).to_owned(), leaf.der().to_vec()));
            }
        }
        Ok(Self { dir: dir.to_path_buf(), known })
    }

    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The name of a certificate that a peer presented.
    #[must_use]
    pub fn name_of(&self, der: &CertificateDer<'_>) -> String {
        self.known
            .iter()
            .find(|(_, d)| d == der.as_ref())
            .map_or_else(|| "unknown".into(), |(n, _)| n.clone())
    }

    /// Chain and key of a leaf.
    ///
    /// # Errors
    /// No such name.
    pub fn load(&self, name: &str) -> io::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let chain =
            CertificateDer::from_pem_file(self.dir.join(format!("{name}.pem"))).map_err(io::Error::other)?;
        let key =
            PrivateKeyDer::from_pem_file(self.dir.join(format!("{name}.key"))).map_err(io::Error::other)?;
        Ok((vec![chain], key))
    }

    /// A store that trusts one CA.
    ///
    /// # Errors
    /// No such CA.
    pub fn roots(&self, ca: &str) -> io::Result<RootCertStore> {
        let mut store = RootCertStore::empty();
        let cert =
            CertificateDer::from_pem_file(self.dir.join(format!("{ca}.pem"))).map_err(io::Error::other)?;
        store.add(cert).map_err(io::Error::other)?;
        Ok(store)
    }
}

//! Authorities, certificates and a folder for them, made anew for each test.
#![allow(dead_code, reason = "each file of tests uses a part of it")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    date_time_ymd,
};
use srpc::transport::Pem;

/// Signs certificates.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub(crate) struct Certificate {
    pub(crate) chain: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Its own certificate.
    pub(crate) fn pem(&self) -> Pem {
        Pem::bytes(self.text())
    }

    pub(crate) fn text(&self) -> String {
        self.0.pem()
    }

    /// A certificate for these host names, IP addresses and URIs.
    pub(crate) fn issue(&self, names: &[&str]) -> Certificate {
        self.sign(of(names))
    }

    /// One that is over.
    pub(crate) fn issue_expired(&self, names: &[&str]) -> Certificate {
        let mut params = of(names);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
        self.sign(params)
    }

    /// One without any name but the subject's common name.
    pub(crate) fn issue_to(&self, common_name: &str) -> Certificate {
        self.sign(named(common_name))
    }

    /// One that names nobody.
    pub(crate) fn issue_to_nobody(&self) -> Certificate {
        self.sign(of(&[]))
    }

    fn sign(&self, params: CertificateParams) -> Certificate {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Certificate { chain: certificate.pem(), key: key.serialize_pem() }
    }
}

impl Certificate {
    pub(crate) fn pems(&self) -> (Pem, Pem) {
        (Pem::bytes(self.chain.clone()), Pem::bytes(self.key.clone()))
    }

    /// Replaces the files that [`Folder`] names.
    pub(crate) fn write(&self, chain: &Path, key: &Path) {
        std::fs::write(chain, &self.chain).unwrap();
        std::fs::write(key, &self.key).unwrap();
    }
}

fn of(names: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names
        .iter()
        .map(|name| match (name.contains("://"), name.parse()) {
            (true, _) => rcgen::SanType::URI((*name).try_into().unwrap()),
            (_, Ok(ip)) => rcgen::SanType::IpAddress(ip),
            _ => rcgen::SanType::DnsName((*name).try_into().unwrap()),
        })
        .collect();
    params
}

fn named(common_name: &str) -> CertificateParams {
    let mut params = of(&[]);
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

/// A folder that goes with the value.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("srpc-tls-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A path in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left is in a folder for what may be left.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

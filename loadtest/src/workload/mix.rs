//! What a registry is asked in production: mostly for few images out of many, mostly whether something is there, and
//! mostly for little.
//!
//! The shares below are our own, after what is published of large registries: nine requests of ten read, most layers
//! are small, and an image's popularity falls with its rank. They are no replay of any registry's log.

use anyhow::{Result, ensure};

use super::push_image;
use crate::{
    content::{Image, MANIFEST, digest},
    random::{Random, Zipf},
    requests::{Asked, Preparation, Requests},
    server::Server,
};

/// How many images there are, each in a repository of its own.
const IMAGES: u64 = 200;

/// The sizes of their layers in bytes, and how many of a hundred have each.
const SIZES: [(usize, u64); 4] = [(4 << 10, 60), (64 << 10, 25), (512 << 10, 12), (4 << 20, 3)];

/// What is asked of an image, and how many requests of a hundred.
const KINDS: [(Kind, u64); 5] = [
    (Kind::TagHead, 50),
    (Kind::ManifestByDigest, 20),
    (Kind::BlobHead, 10),
    (Kind::Blob, 18),
    // Under the tag that it has: the mix can run for any time and leaves what it found.
    (Kind::ManifestPut, 2),
];

/// In the order of the requests that [`add`] makes of an image.
#[derive(Clone, Copy, Debug)]
enum Kind {
    TagHead,
    ManifestByDigest,
    BlobHead,
    Blob,
    ManifestPut,
}

/// The images, the same in every run.
#[derive(Debug)]
pub(crate) struct Images(Vec<Image>);

impl Images {
    pub(crate) fn new() -> Self {
        let mut random = Random::new(7);
        Self((0..IMAGES).map(|number| Image::sized((1 << 40) + number, weighted(&SIZES, &mut random))).collect())
    }
}

/// One of these, each as often as its weight says; the weights are of a hundred.
fn weighted<T: Copy>(choices: &[(T, u64)], random: &mut Random) -> T {
    let mut left = random.below(100) as u64;
    for &(choice, weight) in choices {
        if left < weight {
            return choice;
        }
        left -= weight;
    }
    choices[choices.len() - 1].0
}

fn repository(number: usize) -> String {
    format!("mix/{number}/image")
}

/// Pushes all images, unless they are there.
async fn seed(server: &Server, images: &Images) -> Result<()> {
    let last = format!("/v2/{}/manifests/latest", repository(images.0.len() - 1));
    if server.connect().await?.ask("HEAD", &last).await?.status == 200 {
        return Ok(());
    }
    let mut client = server.connect().await?;
    for (number, image) in images.0.iter().enumerate() {
        push_image(&mut client, &repository(number), "latest", image).await?;
    }
    Ok(())
}

/// HEADs of all blobs, and of some that aren't there: one in twenty, as by clients that push what others have.
pub(crate) async fn storm(server: &Server, images: &Images) -> Result<Requests> {
    seed(server, images).await?;
    let mut preparation = Preparation::of(server).await?;
    for (number, image) in images.0.iter().enumerate() {
        let path = |blob: &[u8]| format!("/v2/{}/blobs/{}", repository(number), digest([blob]));
        preparation.add("HEAD", &path(&image.layer), 200).await?;
        preparation.add("HEAD", &path(&image.config), 200).await?;
        if number % 10 == 0 {
            preparation.add("HEAD", &path(&(number as u64).to_le_bytes()), 404).await?;
        }
    }
    Ok(Requests::picked(preparation.ready(), Random::below))
}

/// The mix.
pub(crate) async fn requests(server: &Server, images: &Images) -> Result<Requests> {
    seed(server, images).await?;
    let mut preparation = Preparation::of(server).await?;
    for (number, image) in images.0.iter().enumerate() {
        add(&mut preparation, &repository(number), image).await?;
    }
    let zipf = Zipf::new(images.0.len());
    let ready: Vec<Asked> = preparation.ready();
    ensure!(ready.len() == images.0.len() * KINDS.len(), "a request for each image and kind");
    let pick = |random: &mut Random, _: usize| zipf.pick(random) * KINDS.len() + weighted(&KINDS, random) as usize;
    Ok(Requests::picked(ready, pick))
}

/// One request of each kind.
async fn add(preparation: &mut Preparation, repository: &str, image: &Image) -> Result<()> {
    let path = |kind, reference: &str| format!("/v2/{repository}/{kind}/{reference}");
    let blob = path("blobs", &digest([&image.layer[..]]));
    preparation.add("HEAD", &path("manifests", "latest"), 200).await?;
    preparation.add("GET", &path("manifests", &digest([&image.manifest[..]])), 200).await?;
    preparation.add("HEAD", &blob, 200).await?;
    preparation.add("GET", &blob, 200).await?;
    preparation.add_with("PUT", &path("manifests", "latest"), (MANIFEST, &image.manifest), 201).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_a_hundred() {
        assert_eq!(SIZES.iter().map(|(_, share)| share).sum::<u64>(), 100);
        assert_eq!(KINDS.iter().map(|(_, share)| share).sum::<u64>(), 100);
        let mut random = Random::new(1);
        let puts = (0..10_000).filter(|_| matches!(weighted(&KINDS, &mut random), Kind::ManifestPut)).count();
        assert!((150..250).contains(&puts), "{puts}");
    }

    #[test]
    fn images_are_mostly_small() {
        let images = Images::new().0;
        let small = images.iter().filter(|image| image.layer.len() <= 64 << 10).count();
        assert!((150..195).contains(&small) && images.iter().any(|image| image.layer.len() == 4 << 20), "{small}");
    }
}

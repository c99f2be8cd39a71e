//! Images in a store, on the command line.
//!
//! ```text
//! images [--store DIR] COMMAND
//!   list                          what the store has
//!   import [--ref NAME] [--platform P] [--max-bytes SIZE] [--max-inodes N] IMAGE
//!   inspect IMAGE                 one of the store's, as JSON
//!   remove IMAGE                  the layers go with the next prune
//!   prune                         what no image needs any more
//!   save [--format oci|oci-dir|docker] [--name NAME] IMAGE FILE
//!   unpack [--ref NAME] [--platform P] [--max-bytes SIZE] [--max-inodes N] IMAGE DEST
//!                                 all its files into an empty directory, without the store
//! ```
//! To `import` and `unpack` IMAGE is a file or directory: an OCI layout, a `docker save`
//! archive, a root file system. To the others it's a name or an id of the store's.
//! P is OS/ARCH[/VARIANT]; SIZE is bytes, or a number with K, M, G or T.
//!
//! An image that is refused ends it with code 1 and one line on standard error.

#[path = "common/size.rs"]
mod size;

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;

use cofferdam::{Image, ImageFormat, ImageOptions, Platform, Progress, Store};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::json;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    match perform() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("images: {}", error.to_string().replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

#[derive(Default)]
struct Arguments {
    store: Option<PathBuf>,
    words: Vec<OsString>,
    options: HashMap<&'static str, String>,
}

const OPTIONS: [&str; 6] = ["ref", "platform", "max-bytes", "max-inodes", "format", "name"];

fn parse() -> Result<Arguments> {
    use lexopt::Arg::{Long, Value};
    let mut arguments = Arguments::default();
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("store") => arguments.store = Some(parser.value()?.into()),
            Long(name) => match OPTIONS.iter().find(|option| **option == name) {
                Some(option) => {
                    let value = parser.value()?.into_string().map_err(|value| format!("--{option}: not a text: {value:?}"))?;
                    arguments.options.insert(option, value);
                }
                None => return Err(format!("there's no option --{name}").into()),
            },
            Value(word) => arguments.words.push(word),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(arguments)
}

fn perform() -> Result<()> {
    let arguments = parse()?;
    let store = || arguments.store.as_ref().map_or_else(Store::open_default, Store::open);
    let words: Vec<&str> = arguments.words.iter().map(|w| w.to_str().unwrap_or_default()).collect();
    let path = |i: usize| PathBuf::from(&arguments.words[i]);
    match words[..] {
        ["list"] => list(&store()?),
        ["import", _] => {
            let image = options(&arguments)?.store(&store()?).open(path(1))?;
            println!("{}", image.id().unwrap_or("a directory needs no import"));
            Ok(())
        }
        ["inspect", reference] => inspect(&store()?, reference),
        ["remove", reference] => Ok(store()?.remove(reference)?),
        ["prune"] => {
            let pruned = store()?.prune()?;
            println!("{} layers, {}, {} leftovers", pruned.layers, bytes(pruned.bytes), pruned.leftovers);
            Ok(())
        }
        ["save", reference, _] => {
            let format = match arguments.options.get("format").map_or("oci", String::as_str) {
                "oci" => ImageFormat::OciArchive,
                "oci-dir" => ImageFormat::OciDirectory,
                "docker" => ImageFormat::DockerArchive,
                other => return Err(format!("--format is oci, oci-dir or docker, not {other}").into()),
            };
            let name = arguments.options.get("name").map_or(reference, String::as_str);
            Ok(store()?.image(reference)?.save(path(2), format, name)?)
        }
        ["unpack", _, _] => Ok(options(&arguments)?.unpack(path(1), path(2))?),
        _ => Err(
            "usage: images [--store DIR] list | import IMAGE | inspect IMAGE | remove IMAGE | prune | save IMAGE FILE | unpack IMAGE DEST"
                .into(),
        ),
    }
}

/// What `import` and `unpack` share.
fn options(arguments: &Arguments) -> Result<ImageOptions> {
    let mut options = Image::options().progress(bars());
    if let Some(reference) = arguments.options.get("ref") {
        options = options.reference(reference);
    }
    if let Some(platform) = arguments.options.get("platform") {
        options = options.platform(platform.parse::<Platform>()?);
    }
    if let Some(size) = arguments.options.get("max-bytes") {
        options = options.max_bytes(size::parse(size).map_err(|why| format!("--max-bytes: {size:?} {why}"))?);
    }
    if let Some(inodes) = arguments.options.get("max-inodes") {
        options = options.max_inodes(inodes.parse().map_err(|_| format!("--max-inodes: {inodes:?} is no number"))?);
    }
    Ok(options)
}

/// A bar for each layer; nothing where standard error is no terminal.
fn bars() -> impl Fn(Progress<'_>) + Send + Sync {
    let all = MultiProgress::new();
    let bars: Mutex<HashMap<usize, ProgressBar>> = Mutex::default();
    move |progress: Progress<'_>| {
        let mut bars = bars.lock().unwrap_or_else(|e| e.into_inner());
        let bar = bars.entry(progress.layer).or_insert_with(|| {
            let bar = all.add(ProgressBar::new(progress.total));
            if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}") {
                bar.set_style(style);
            }
            let digest = progress.digest.split_once(':').map_or("", |(_, hex)| hex.get(..12).unwrap_or(hex));
            bar.set_message(format!("layer {}/{} {digest}", progress.layer, progress.layers));
            bar
        });
        bar.set_position(progress.read);
        if progress.read == progress.total {
            bar.finish();
        }
    }
}

fn list(store: &Store) -> Result<()> {
    println!("{:<14}{:>7}{:>12}  NAMES", "ID", "LAYERS", "SIZE");
    for image in store.images()? {
        let id = image.id().split_once(':').map_or("", |(_, hex)| hex.get(..12).unwrap_or(hex));
        println!("{id:<14}{:>7}{:>12}  {}", image.layers(), bytes(image.bytes()), image.names().join(" "));
    }
    Ok(())
}

fn inspect(store: &Store, reference: &str) -> Result<()> {
    let image = store.image(reference)?;
    let listed = store.images()?.into_iter().find(|stored| Some(stored.id()) == image.id()).ok_or("the image is gone")?;
    let config = listed.config();
    let object = json!({
        "id": listed.id(),
        "names": listed.names(),
        "created": listed.created(),
        "platform": config.platform().map(Platform::to_string),
        "layers": listed.layers(),
        "bytes": listed.bytes(),
        "inodes": listed.inodes(),
        "entrypoint": config.entrypoint(),
        "cmd": config.cmd(),
        "env": config.env().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>(),
        "working_dir": config.working_dir(),
        "user": config.user(),
        "volumes": config.volumes().collect::<Vec<_>>(),
        "stop_signal": config.stop_signal(),
        "labels": config.labels(),
    });
    println!("{object:#}");
    Ok(())
}

fn bytes(count: u64) -> String {
    match count {
        0..1024 => format!("{count} B"),
        1024..0x10_0000 => format!("{:.1} KiB", count as f64 / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", count as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", count as f64 / 1_073_741_824.0),
    }
}

//! Try.
use cofferdam::*;
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut sandbox = Sandbox::new();
    if let Ok(r) = std::env::var("ROOT") { sandbox = sandbox.rootfs(Image::dir(r)); }
    if std::env::var("EXPLAIN").is_ok() { println!("{}", sandbox.explain().unwrap()); }
    match sandbox.run(args) {
        Ok(out) => { print!("{}", out.text()); eprint!("{}", String::from_utf8_lossy(&out.stderr)); println!("{} {:?}", out.status, out.usage); }
        Err(e) => println!("error: {e:?}"),
    }
}

// What this program was built from. Linked with lamina_version, apart from lamina_base: a new commit links
// anew only the programs that say it.
#pragma once

namespace lamina {

// "0.1.0+g1a2b3c4d": the project's version and the git revision; "0.1.0" when built outside a git work tree.
const char* Version();

}  // namespace lamina

// Holds the precompiled headers of lamina.cmake: CMake wants a source in the target that others take them
// from.
